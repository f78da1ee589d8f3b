"""What training and evaluation cost, and how far a training step is from the official one."""
