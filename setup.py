"Everything about the package is said in settings.ini; this file only hands it to setuptools."
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

root = Path(__file__).parent
parser = ConfigParser(delimiters=['='])
parser.read(root/'settings.ini', encoding='utf-8')
settings = parser['DEFAULT']

needed = 'lib_name version description author author_email license min_python requirements'.split()
missing = [key for key in needed if not settings.get(key)]
if missing: raise SystemExit(f'settings.ini lacks {", ".join(missing)}')
if settings['license'] != 'apache2': raise SystemExit(f'setup.py knows no license {settings["license"]!r}: add its SPDX name here')

extras = {name: settings[f'{name}_requirements'].split() for name in ('dev', 'lab', 'scale', 'node', 'bench')}
readme = root/'README.md'

setup(
    name=settings['lib_name'],
    version=settings['version'],
    description=settings['description'],
    long_description=readme.read_text(encoding='utf-8') if readme.exists() else settings['description'],
    long_description_content_type='text/markdown',
    author=settings['author'],
    author_email=settings['author_email'],
    url=settings['git_url'],
    keywords=settings['keywords'].split(),
    license='Apache-2.0',
    classifiers=[
        'Development Status :: 3 - Alpha',
        f'Intended Audience :: {settings["audience"]}',
        'Natural Language :: English',
        'Typing :: Typed',
        *(f'Programming Language :: Python :: 3.{minor}' for minor in range(int(settings['min_python'].split('.')[1]), 15)),
    ],
    packages=find_packages(include=[settings['lib_name'], f'{settings["lib_name"]}.*']),
    package_data={settings['lib_name']: ['py.typed']},
    python_requires=f'>={settings["min_python"]}',
    install_requires=settings['requirements'].split(),
    extras_require=extras,
    entry_points={
        'console_scripts': settings['console_scripts'].split('\n'),
        'nbdev': [f'{settings["lib_name"]}={settings["lib_name"]}._modidx:d'],
    },
    zip_safe=False,
)
