"""Studies: grids of trainings, who works on them, their progress, requirements and cost."""
