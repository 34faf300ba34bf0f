"""What a training reads: images that can be read, classes' shares, flips, cached latents, order."""
