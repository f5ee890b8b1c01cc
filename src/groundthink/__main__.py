from groundthink.cli import main

raise SystemExit(main())
