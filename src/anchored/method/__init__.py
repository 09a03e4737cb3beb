"""The method: anchoring, reference masking, hard Δ mining, folding; torch only, no files and no choice of device."""
