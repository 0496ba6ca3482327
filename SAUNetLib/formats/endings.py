"""File extensions that are read and written."""

IMAGES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")
"""Extensions of images that can be read; DICOM files may have any name."""
VOLUMES = (".nii.gz", ".nii", ".nrrd", ".mha")
SEGMENTS = ".seg.nrrd"
"""3D Slicer segmentation."""
SEGMENTATIONS = (*VOLUMES, SEGMENTS)
TABLES = (".csv",)
MEASUREMENTS = (".csv", ".json")
PICTURES = (".png",)
