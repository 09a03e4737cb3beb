"""Reports: rows to tables, figures and pages; runs no training."""
