"""What training needs of images and prompts, computed once."""
