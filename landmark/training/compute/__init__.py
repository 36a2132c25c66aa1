"""What a training step computes: optimizers, precision, augmentation on the device, EMA, and Partial FC."""
