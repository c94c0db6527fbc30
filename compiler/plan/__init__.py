"""What a plan file may say."""
