"""The services of a mesh; they never import each other, they speak protos."""
