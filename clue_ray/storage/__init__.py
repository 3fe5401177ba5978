"""Files on local disks and at URIs."""
