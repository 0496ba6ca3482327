"""Files in and out: volumes (read), segmentations (read and write), previews (pictures)."""
