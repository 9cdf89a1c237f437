"""The TensorBoard tab "Glassy": the data in the event files, and the plugin that serves the page of the report."""
