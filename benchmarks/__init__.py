"""`make bench`: measures the mesh and, in the same run, the physical floors under it."""
