"""Two files for each pipeline repository on the Hub. They import only the standard library, torch and diffusers."""
