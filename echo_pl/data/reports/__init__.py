"""What a radiologist wrote, and the normalized report that is made of it (METHOD.md 1)."""
