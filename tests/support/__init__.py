"""What the tests share: checkpoints, exact arithmetic and builds, none of it made with the code under test."""
