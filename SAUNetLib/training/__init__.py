"""Training: data sets, augmentation, the phantom and the training run itself (extra ``train``)."""
