"""The ground: knows nothing about video or learning, and imports nothing of ours."""
