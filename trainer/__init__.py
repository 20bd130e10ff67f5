"""Makes trainer.text this folder's, whatever package called trainer the interpreter has of its own."""
