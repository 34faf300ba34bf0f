"""The file that MONAI Label's server looks for in the folder of an app."""

from medfusion_monai.apps.monailabel.label_app import MedfusionApp

__all__ = ["MedfusionApp"]
