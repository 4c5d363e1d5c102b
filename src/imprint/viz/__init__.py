"""Floor 5: pictures of encoders and runs. Pure functions make arrays and charts; `report` puts them on one page."""
