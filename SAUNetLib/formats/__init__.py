"""Files in and out: volumes and segmentations (read and write), previews (pictures)."""
