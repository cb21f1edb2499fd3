"""Two runs side by side: whether they may be compared, what changed beyond noise, and why."""
