"""``perseus-agent doctor``: a read-only look at a node, for the person who installs. It changes nothing."""
