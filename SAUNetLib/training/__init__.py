"""Training: data sets, augmentation and the training run (extra ``train``), and the phantom, which needs no extra."""
