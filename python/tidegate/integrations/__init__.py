"""Programs that others have written, on Tidegate's engine; each module is imported by its own name."""
