"""One question a file, one public function a file; methods know the model by its protocol alone."""
