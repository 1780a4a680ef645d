"""Images to detections: one image, its tiles, its masks, and the results file."""
