"""The data of a training: readable images, class shares, flips, cached latents, order."""
