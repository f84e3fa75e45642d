"""The operator: watches PerseusJobs, keeps their child objects, and replans when a pipeline straggles."""
