"""ReCogDrivePolicy: Observation -> VLM -> planner -> PlannedTrajectory, and the imitation objective."""
