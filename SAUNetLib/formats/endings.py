"""The endings of files that are read and written."""

IMAGES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")
"""What an image may end in that is read; DICOM files may be called anything."""
VOLUMES = (".nii.gz", ".nii", ".nrrd", ".mha")
SEGMENTS = ".seg.nrrd"
"""3D Slicer's segmentation."""
SEGMENTATIONS = (*VOLUMES, SEGMENTS)
TABLES = (".csv",)
MEASUREMENTS = (".csv", ".json")
PICTURES = (".png",)
