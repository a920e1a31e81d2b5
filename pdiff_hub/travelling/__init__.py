"""What is copied into every Hub repository: two files that need the standard library, torch and diffusers alone."""
