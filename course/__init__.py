"""The course: figures and tables of both families from runs of the package, on pages in English and Chinese."""
