"""The main job: plan → search → re-evaluate → compare."""
