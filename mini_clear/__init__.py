"""The embedded world: invented people with portraits and biographies, in folders of the shape of CLEAR and TOFU."""
