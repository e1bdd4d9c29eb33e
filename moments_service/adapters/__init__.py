"""BV-Blend outside this project's own loop: in plain Python (`local`), TRL (`trl`), verl (`verl`) and SkyRL (`skyrl`).

Each adapter imports its library and nothing else does; `local` needs none of them, nor torch.
"""
