// The entry of a report: the page in one file, with the answers inside.

import {answerFrom} from "./api.js";
import {start} from "./page.js";
import {setUsual} from "./state.js";

const report = JSON.parse(document.getElementById("answers").textContent);
answerFrom(report);
setUsual(report.choice);
start(document.body, true);
