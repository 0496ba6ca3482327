"""SAUNetLib: spine MRI segmentation with SAU-Net, without Slicer."""

__version__ = "0.2.0"
