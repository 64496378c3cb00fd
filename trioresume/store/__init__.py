"""The storage of operations, contents and files: ``disk_store`` puts the wings together."""
