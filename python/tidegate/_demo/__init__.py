"""`tidegate demo`: strict servers of our own, and a run against them that judges itself by the servers' counts."""
