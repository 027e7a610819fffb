// What each page gets. A page's own modules are imported by it.

import { enhanceForms, forgetNotice } from "./forms.js";
import { listenForKeys } from "./keyboard.js";
import { followChanges } from "./live.js";
import { enhance, onEnhance } from "./page.js";
import { loadValues } from "./json_tree.js";
import { keepTimes, localise } from "./times.js";
import { openRows } from "./rows.js";
import { selectRows } from "./select.js";
import { selectWindows } from "./waterfall.js";

onEnhance(localise);
onEnhance(enhanceForms);
enhance(document);
forgetNotice();
keepTimes();
loadValues();
selectWindows();
openRows();
selectRows();
listenForKeys();
followChanges();
