"""A Space (or any server) that shows `swag-trainer serve`'s page for one repository.

Copy this file into a Space with the gradio SDK, beside a requirements.txt with one line, ``swag-trainer[page]``, and name the repository in
the Space's variable MODEL.
"""

import os

from swag_trainer.cli.serve import ServeOptions, serve

serve(ServeOptions(model=os.environ["MODEL"], host="0.0.0.0", port=int(os.environ.get("PORT", "7860"))))
