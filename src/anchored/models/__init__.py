"""Networks: by name, from a folder or the hub, with their initial weights; cards and exports of them."""
