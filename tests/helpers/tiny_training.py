"""Settings of trainings that take seconds."""

TINY_NETWORKS = {
    "image_size": [32, 32],
    "autoencoder_channels": [8, 8, 16, 16],
    "unet_channels": [16, 16, 16, 32],
    "unet_embedding_channels": 32,
    "unet_norm_groups": 8,
}
"""The smallest networks that the bundles' configs allow."""
