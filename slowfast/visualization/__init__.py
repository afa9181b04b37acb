"""What people see after a job: the report, its figures, and the TensorBoard log."""
