"""What jobs do. Each function checks its request at once and returns the job that waits or runs.

    sample(studio, label, count=4, seed=0, *, num_inference_steps=None, guidance_scale=None, batch_size=16)
    edit(studio, edit, image, *, source, label=None, own_label=None, mask=None, seed=0, **settings)
    interpolate(studio, start, end, *, label=None, frames=8, source="", num_inference_steps=None)
    classify(studio, image, *, seed=0)         # the job's value is a Classification
    nearest(studio, images, *, number=3)       # the job's value has a list of Neighbour per image
    check_copies(studio, images)               # the job's value is a Verdict of the audit's copy guard

All raise a ValueError for a request out of range, and ``QueueFullError``, which is one, if too many jobs wait.
"""

from medfusion_monai.studio.tasks.class_task import classify
from medfusion_monai.studio.tasks.edit_task import edit
from medfusion_monai.studio.tasks.frames_task import interpolate
from medfusion_monai.studio.tasks.nearest_task import Neighbour, check_copies, nearest
from medfusion_monai.studio.tasks.sample_task import sample

__all__ = ["Neighbour", "check_copies", "classify", "edit", "interpolate", "nearest", "sample"]
