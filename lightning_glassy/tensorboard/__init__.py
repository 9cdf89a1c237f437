"""The TensorBoard tab "Glassy": the data in the event files, and the page that shows them."""
