"""Report text: sections, labels, normalization, completeness, Chinese, near-duplicates."""
