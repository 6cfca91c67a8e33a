"""The commands that come with the service: `r2m serve`, `doctor`, `config`, `keys` and `replay`."""

from r2m_service.cli._config import config
from r2m_service.cli._doctor import doctor
from r2m_service.cli._keys import keys
from r2m_service.cli._replay import replay
from r2m_service.cli._serve import serve

__all__ = ["config", "doctor", "keys", "replay", "serve"]
