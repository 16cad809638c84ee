"""Models as others write them: the references of our models in the tests, and their rivals in the benchmark."""
